"""The public names: a change of this list is a decision."""

import importlib
import inspect
import re

import pytest

import flowsde as fs

NAMES = {
    "flowsde": """
        Flow Result ShardingRules __version__ analytic batch check_convention check_search
        classifier_free_guidance diagnose diffusion distributed grids guide interpolants iterate
        kernels load match_time posterior_samples reparameterise restore_search rewards run sample
        save_search score_to_velocity score_to_x0 score_to_x1 search shapes tournament tune
        velocity_to_score
        velocity_to_x0 velocity_to_x1 x0_to_score x0_to_velocity x0_to_x1 x1_to_score
        x1_to_velocity x1_to_x0
    """,
    "flowsde.analytic": "GaussianMixture gaussian mixture",
    "flowsde.diffusion": "clipping constant exp flow_grpo forward linear sigma sin square tan",
    "flowsde.distributed": "job own_prompts",
    "flowsde.grids": "cosine flux quadratic shifted tail uniform",
    "flowsde.interpolants": """
        Cosine FromFunctions Interpolant Linear LinearVP Polynomial VP cosine from_functions
        linear linear_vp match_time polynomial vp
    """,
    "flowsde.kernels": """
        Before CPS Correlated DDIM DPMSolver2M EulerMaruyama Exact GLASS Guided KERNELS Kernel
        Multistep NoiseTilt ODEAdams ODEEuler ODEHeun Renoise SDEHeun UniPC correlated cps ddim
        dpm_solver_2m euler_maruyama exact glass guided noise_tilt ode_adams ode_euler ode_heun
        renoise reward_gradient sde_heun uni_pc
    """,
    "flowsde.rewards": """
        DeviceReward HostReward RewardError cascade device host judge judge_pairs lexicographic
        minimum normalised remote weighted
    """,
    "flowsde.search": """
        BestOfN BudgetTooSmall Candidates CoDe Complete DFS DTS Evaluation Evolution GridSearch
        Info Keeping LiDAR Lines METHODS NoiseSearch PCN Particle PsiSampler RBF Restarts SMC Search
        SearchBase SoP SuccessiveHalving WeightedSample Weights affordable_units any_over_prompts
        bon code dfs dts epsilon_greedy even_shares evolution fold_in_ids further halving keep lidar
        map_valid pcn psi rbf smc sop svdd to_particles tree_take tree_where weighted_sample
        zero_order
    """,
    "flowsde.shapes": "encode load_flow load_reward load_scorer",
}


def public(module):
    """What `__all__` names, else what the module defines itself without an underscore."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


@pytest.mark.parametrize("name", NAMES)
def test_public_names(name):
    module = fs if name == "flowsde" else getattr(fs, name.partition(".")[2])
    assert public(module) == set(NAMES[name].split())


def test_what_is_public_says_what_it_is():
    for name in NAMES:
        module = fs if name == "flowsde" else getattr(fs, name.partition(".")[2])
        for each in public(module) - {"__version__"}:
            assert inspect.getdoc(getattr(module, each)), f"{name}.{each}"
    assert importlib.import_module("flowsde.kernels") is fs.kernels
    assert dir(fs) == sorted(fs.__all__)


def test_help_begins_with_the_public_names():
    """Before pydoc's list of all files, private ones first."""
    named = set(re.findall(r"`fs\.(\w+)`", fs.__doc__))
    conversions = {name for name in fs.__all__ if re.fullmatch(r"\w+_to_\w+", name)}
    assert named | conversions | {"__version__"} == set(fs.__all__)

import warnings

import pytest
import tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The folders of tiny pipelines, saved as "source" and converted to "out", and diffusers' own
    of the same weights."""
    pytest.importorskip("diffusers")
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("schnell", "dev"):
            made[name] = tmp_path_factory.mktemp(name)
            made[f"{name} of diffusers"] = tiny.flux_pipeline(made[name], dev=name == "dev")
            tiny.converted(made[name] / "source", made[name] / "out")
    return made


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """The folders of a converted CLIP, aesthetic head, SiT and its autoencoder, and diffusers'."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("others")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vae, converted = tiny.sd_vae(folder / "vae")
        return {
            "clip": tiny.clip(folder / "clip"),
            "head": tiny.aesthetic_head(folder / "head"),
            "sit": tiny.sit_model(folder / "sit"),
            "vae": converted,
            "vae of diffusers": vae,
        }

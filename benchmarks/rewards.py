"""How long do the rewards take beside the PyTorch classes whose files they are converted from?

Each pair has the same sizes and the same random weights, copied by the converter's tables, and
gives the same scores (checked before anything is timed). A reward is computed whole, as a search
asks for it: pictures of 224 x 224 in [-1, 1] in, scores out; what is made of a prompt once, an
embedding by CLIP, is given to both. On the CPU, in float32, ours compiled, PyTorch's in inference
mode, both with all cores, in turns in one process.

Widths are those of the published models, depths are cut, and the batch is 4:

    clip          CLIPModel of transformers, ViT-L/14's image tower: blocks of 1,024
    pick          the same, ViT-H/14's: blocks of 1,280, exact GELU
    hpsv2.1       the same
    imagereward   BlipVisionModel and BlipTextModel, and the head: blocks of 1,024, and of 768 that
                  attend to them; 35 tokens
    vqascore      T5ForConditionalGeneration, CLIPVisionModel and the projector between them: blocks
                  of 2,048 of either half (XL), and of 1,024; 256 patches between 40 and 64 tokens
    instructblip  InstructBlipForConditionalGeneration: blocks of 1,408, of 768 of the Q-Former, and
                  of 2,048 of either half of the T5 (XL); 32 queries, and 64 tokens, read twice
    qwen3vl       Qwen3VLForConditionalGeneration: blocks of 1,024 and of 2,560 (4B); 49 tokens of a
                  picture, with the features of up to three blocks, and 64 of one question
    aesthetic     ViT-L/14's image tower and the head
    owlv2         Owlv2ForObjectDetection's image tower and heads, of blocks of 768, at 224 pixels;
                  the smooth count of three classes, after non-maximum suppression

    python benchmarks/rewards.py [--quick] [--json FILE] [--only NAMES]

With `--only` the file's rows of all other rewards stay in it.

Keys of the JSON: version, versions {jax, jaxlib, torch, transformers, python}, cores, load (average
over a minute, at the start and at the end), settings {batch, repetitions, blocks}; clip, pick,
hpsv2.1, imagereward, vqascore, instructblip, qwen3vl, aesthetic, owlv2 (our median seconds over
PyTorch's); target; error, by reward (largest difference of the scores over their largest value);
flops, by reward (of a picture); memory, by reward, {ours, torch} (bytes of a call at its peak,
without weights and pictures: what XLA reserves, and what PyTorch's profiler sees allocated);
details, by reward, {ours, torch} (seconds, a list over repetitions each); seconds. With --quick
there are fewer blocks and repetitions.
"""

import itertools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import torch
import transformers
import tyro
from _files import save_json
from _flops import flops
from _ports_pairs import BATCH, Pair, filled, normal, port, ratios
from _ports_some import VERSIONS, Some, how, joined, others_of
from _rewards_instructblip import instructblip
from _rewards_qwen3vl import qwen3vl
from _torch_owlv2 import counted

import flowsde as fs
from flowsde.models.blip.rewards import image_reward
from flowsde.models.clip import rewards as by_clip
from flowsde.models.clip_flant5.questions import Question
from flowsde.models.clip_flant5.rewards import vqa_score
from flowsde.models.owlv2.rewards import Counting, count_reward, wanted

SIDE = 224
_MEAN, _STD = (torch.tensor(a)[:, None, None] for a in (by_clip.MEAN, by_clip.STD))
_WIDTHS = (768, 1024, 128, 64, 16)
"""Of both heads: the embedding's, and those within."""


class Both(NamedTuple):
    """A reward on both sides.

    Attributes:
      reward: ours.
      theirs: of pixels [n, 3, side, side], standardised.
      cond: what ours is told; None for nothing.
      colours: mean and standard deviation by which theirs are.
    """

    reward: fs.rewards.DeviceReward
    theirs: Callable[[torch.Tensor], torch.Tensor]
    cond: Any = None
    colours: tuple[Any, Any] = (_MEAN, _STD)


def clip_model(blocks: int, wide: bool) -> tuple[Any, Any]:
    """CLIPModel with a full image tower and a small text tower, and ours of it."""
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    huge = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16}
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": 50, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 1, "bos_token_id": 1, "eos_token_id": 49, "pad_token_id": 0,
        },
        vision_config=(huge if wide else large)
        | {"num_hidden_layers": blocks, "patch_size": 14, "image_size": SIDE}
        | {"hidden_act": "gelu" if wide else "quick_gelu"},
        projection_dim=1024 if wide else _WIDTHS[0],
    )  # fmt: skip
    module: Any = filled(transformers.CLIPModel(config))
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    return module, port("clip", tensors, config.to_dict())


def unit(x: torch.Tensor) -> torch.Tensor:
    """Of length one."""
    return x / x.norm(dim=-1, keepdim=True)


def cosine(blocks: int, wide: bool, reward: Callable[..., Any], scaled: bool = False) -> Both:
    """A reward by the cosine of a picture's embedding and the prompt's."""
    module, model = clip_model(blocks, wide)
    prompt = np.random.default_rng(0).normal(size=(BATCH, model.config.vision.projection))
    wanted = unit(torch.from_numpy(prompt.astype(np.float32)))

    def theirs(x: torch.Tensor) -> torch.Tensor:
        alike = (unit(module.get_image_features(x).pooler_output) * wanted).sum(-1)
        return module.logit_scale.exp() * alike if scaled else alike

    return Both(reward(model), theirs, jnp.asarray(wanted.numpy()))


def head(widths: tuple[int, ...], places: tuple[int, ...]) -> torch.nn.Module:
    """Linear layers at the places of a published head, in which dropout has the others."""
    layers: list[torch.nn.Module] = [torch.nn.Identity() for _ in range(places[-1] + 1)]
    for place, (a, b) in zip(places, itertools.pairwise((*widths, 1)), strict=True):
        layers[place] = torch.nn.Linear(a, b)
    return torch.nn.ModuleDict({"layers": torch.nn.Sequential(*layers)})


def aesthetic(blocks: int) -> Both:
    """LAION's head on an embedding of length one."""
    module, model = clip_model(blocks, wide=False)
    top: Any = filled(head(_WIDTHS, (0, 2, 4, 6, 7)))
    own = {key: value.numpy() for key, value in top.state_dict().items()}

    def theirs(x: torch.Tensor) -> torch.Tensor:
        return top["layers"](unit(module.get_image_features(x).pooler_output))[:, 0]

    return Both(by_clip.aesthetic(model.vision, port("aesthetic", own, None)), theirs)


_FILE_NAMES = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding", "patch_embed.proj"),
    ("encoder.layers", "blocks"),
    ("layer_norm1", "norm1"),
    ("layer_norm2", "norm2"),
    ("self_attn.projection", "attn.proj"),
    ("self_attn", "attn"),
    ("post_layernorm", "norm"),
)
"""Of BlipVisionModel, and of the published file."""


def file_of(module: torch.nn.ModuleDict) -> dict[str, np.ndarray]:
    """What ImageReward's file would hold."""
    held = {}
    for key, value in module.state_dict().items():
        part, _, rest = key.partition(".")
        if part == "vision":
            for theirs, own in _FILE_NAMES:
                rest = rest.replace(theirs, own)
        begin = {"vision": "blip.visual_encoder.", "text": "blip.text_encoder."}.get(part, "mlp.")
        held[begin + rest] = value.numpy()
    for name, width in (("vision_proj", 1024), ("text_proj", 768)):
        held[f"blip.{name}.weight"] = np.zeros((256, width), np.float32)
        held[f"blip.{name}.bias"] = np.zeros(256, np.float32)
    held["blip.text_encoder.embeddings.position_ids"] = np.arange(512)[None]
    return held


def imagereward(blocks: int) -> Both:
    """Both towers and the head, by the published formula."""
    vision = transformers.BlipVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=blocks,
        image_size=SIDE, patch_size=16, layer_norm_eps=1e-6,
    )  # fmt: skip
    text = transformers.BlipTextConfig(
        vocab_size=1000, hidden_size=768, encoder_hidden_size=1024, intermediate_size=3072,
        num_attention_heads=12, num_hidden_layers=blocks, max_position_embeddings=512,
        layer_norm_eps=1e-12, is_decoder=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    towers = {
        "vision": transformers.BlipVisionModel(vision),
        "text": transformers.BlipTextModel(text, add_pooling_layer=False),
        "mlp": head(_WIDTHS, (0, 2, 4, 6, 7)),
    }
    module: Any = filled(torch.nn.ModuleDict(towers))
    heads = {
        "vision_config": {"num_attention_heads": 16},
        "text_config": {"num_attention_heads": 12},
    }
    model = port("imagereward", file_of(module), heads)
    ids = np.random.default_rng(0).integers(1, 1000, (BATCH, 35), dtype=np.int32)
    in_torch = torch.from_numpy(ids.astype(np.int64))

    def theirs(x: torch.Tensor) -> torch.Tensor:
        image = module["vision"](x).last_hidden_state
        text = module["text"](
            input_ids=in_torch, attention_mask=torch.ones_like(in_torch),
            encoder_hidden_states=image, is_decoder=False,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long),
        ).last_hidden_state  # fmt: skip
        score = module["mlp"]["layers"](text[:, 0])[:, 0]
        return (score - 0.16717362830052426) / 1.0333394966054072

    return Both(image_reward(model), theirs, jnp.asarray(ids))


def vqascore(blocks: int) -> Both:
    """Image tower, projector and T5, by the published formula."""
    vocab, width, tower = 1000, 2048, "vision_tower.vision_tower.vision_model."
    text = transformers.T5Config(
        vocab_size=vocab, d_model=width, d_kv=64, d_ff=5120, num_heads=32, num_layers=blocks,
        feed_forward_proj="gated-gelu", scale_decoder_outputs=False, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    # The last block is not asked.
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16,
        num_hidden_layers=blocks + 1, image_size=SIDE, patch_size=14,
    )  # fmt: skip
    t5 = transformers.T5ForConditionalGeneration(text)
    t5.lm_head.weight = torch.nn.Parameter(torch.zeros(vocab, width))
    layers = torch.nn.Linear(1024, width), torch.nn.GELU(), torch.nn.Linear(width, width)
    parts = {
        "": filled(t5),
        tower: filled(transformers.CLIPVisionModel(vision)),
        "mm_projector.": filled(torch.nn.Sequential(*layers)),
    }
    held = {
        begin + key.removeprefix("vision_model."): value.numpy()
        for begin, part in parts.items()
        for key, value in part.state_dict().items()
    }
    model = port("clip_flant5", held, {"tie_word_embeddings": False})
    rng = np.random.default_rng(0)
    asked = Question(*(rng.integers(1, vocab, (BATCH, n), dtype=np.int32) for n in (40, 64, 2)))
    before, after, answer = (torch.from_numpy(ids.astype(np.int64)) for ids in asked)

    def theirs(x: torch.Tensor) -> torch.Tensor:
        seen = parts[tower](x, output_hidden_states=True).hidden_states[-2][:, 1:]
        embed: Any = t5.get_input_embeddings()
        read = torch.cat([embed(before), parts["mm_projector."](seen), embed(after)], dim=1)
        said = t5(inputs_embeds=read, labels=answer).logits.log_softmax(-1)
        return said.gather(-1, answer[..., None])[..., 0].mean(-1).exp()

    return Both(vqa_score(model), theirs, jax.tree.map(jnp.asarray, asked))


def owlv2(blocks: int) -> Both:
    """Counts of three classes in the boxes that suppression keeps, smoothly."""
    small = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    config = transformers.Owlv2Config(
        text_config={**small, "num_hidden_layers": 1, "vocab_size": 50},
        vision_config={"num_hidden_layers": blocks, "image_size": SIDE, "patch_size": 16},
        projection_dim=64,
    )
    module: Any = filled(transformers.Owlv2ForObjectDetection(config))
    held = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    heads = {f"{of}_config": {"num_attention_heads": n} for of, n in (("text", 1), ("vision", 12))}
    model = port("owlv2", held, heads)
    counting = Counting(softness=0.5)
    queries, numbers = unit(torch.from_numpy(normal(3, 64))), torch.tensor([3.0, 2.0, 1.0])
    told = wanted(queries.numpy(), {"red cube": 3, "dog": 2, "cat": 1})
    conds = jax.tree.map(lambda a: jnp.repeat(jnp.asarray(a)[None], BATCH, axis=0), told)

    def theirs(x: torch.Tensor) -> torch.Tensor:
        grid = module.image_embedder(x)[0]
        patches = grid.flatten(1, 2)
        logits = module.class_predictor(patches, queries.expand(len(x), -1, -1))[0]
        boxes = module.box_predictor(patches, grid)
        found = [counted(*one, counting) for one in zip(logits, boxes, strict=True)]
        return -(numbers - torch.stack(found)).square().sum(-1)

    return Both(count_reward(model, counting), theirs, conds)


REWARDS: dict[str, Callable[[int], Both]] = {
    "clip": lambda blocks: cosine(blocks, False, by_clip.clip_score),
    "pick": lambda blocks: cosine(blocks, True, by_clip.pick_score, scaled=True),
    "hpsv2.1": lambda blocks: cosine(blocks, True, lambda model: by_clip.hps_score(model, "2.1")),
    "imagereward": imagereward,
    "vqascore": vqascore,
    "instructblip": lambda blocks: Both(*instructblip(blocks, SIDE)),
    "qwen3vl": lambda blocks: Both(*qwen3vl(blocks, SIDE), (0.5, 0.5)),
    "aesthetic": aesthetic,
    "owlv2": owlv2,
}


def torch_peak(f: Callable[[], Any]) -> int:
    """Bytes that a call has allocated at its peak, beyond those before it."""
    with torch.profiler.profile(profile_memory=True) as found:
        f()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes, initial=0))


def sides(both: Both, costs: dict[str, Any]) -> Pair:
    """Both sides on the same pictures; what a call takes is written to `costs`."""
    pictures = np.random.default_rng(1).uniform(-1.0, 1.0, (BATCH, SIDE, SIDE, 3))
    images, given = jnp.asarray(pictures, jnp.float32), torch.tensor(pictures, dtype=torch.float32)

    def score(reward: Any, images: jax.Array, cond: Any) -> jax.Array:
        return reward(images, cond)

    compiled = jax.jit(score).lower(both.reward, images, both.cond).compile()

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            mean, std = both.colours
            x = (0.5 * (given.permute(0, 3, 1, 2).clamp(-1.0, 1.0) + 1.0) - mean) / std
            return both.theirs(x)

    costs["flops"] = flops(score, both.reward, images, both.cond) / BATCH
    analysis: Any = compiled.memory_analysis()
    costs["memory"] = {"ours": analysis.temp_size_in_bytes, "torch": torch_peak(theirs)}
    return Pair(lambda: compiled(both.reward, images, both.cond), theirs)


def measure(args: Some) -> dict[str, Any]:
    """All rewards, or some, with the file's rows of the others."""
    began, load = time.perf_counter(), os.getloadavg()[0]
    blocks, repetitions = (1, 3) if args.quick else (4, 15)
    same = how(repetitions, blocks)
    others = others_of(args, REWARDS, same)
    costs: dict[str, dict[str, Any]] = {name: {} for name in args.only or REWARDS}
    made = {
        name: lambda blocks, name=name: sides(REWARDS[name](blocks), costs[name]) for name in costs
    }
    found = ratios(made, blocks, repetitions)
    for name, own in costs.items():
        memory = {side: f"{size / 2**20:.0f} MiB" for side, size in own["memory"].items()}
        print(f"{name:12}{own['flops'] / 1e9:9.1f} GFLOP a picture, memory {memory}")
    found |= {key: {name: own[key] for name, own in costs.items()} for key in ("flops", "memory")}
    versions = {one.__name__: one.__version__ for one in (jax, jaxlib, torch)}
    about = {"versions": versions | VERSIONS, "load": [load, os.getloadavg()[0]]}
    return joined(others, found, same, about, time.perf_counter() - began)


def main() -> None:
    """Measure, and write what is asked for."""
    args = tyro.cli(Some, description=__doc__)
    save_json(args.json, measure(args))


if __name__ == "__main__":
    main()

"""A whole FLUX pipeline, a CLIP and a SiT, tiny, with random weights, as their libraries save
them."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from outside import diffusers, torch, transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from flowsde.models.aesthetic.model import AestheticConfig
from flowsde.models.blip.model import BLIPTextConfig, ImageRewardConfig
from flowsde.models.clip.model import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from flowsde.models.clip_flant5.model import CLIPFlanT5Config
from flowsde.models.common.paths import parameters
from flowsde.models.converted import store
from flowsde.models.family import abstract
from flowsde.models.instructblip.model import InstructBLIPConfig
from flowsde.models.instructblip.qformer import QFormerConfig
from flowsde.models.owlv2.model import Owlv2Config
from flowsde.models.qwen3.model import Qwen3Config
from flowsde.models.qwen3_vl.model import Qwen3VLConfig
from flowsde.models.qwen3_vl.vision import Qwen3VLVisionConfig
from flowsde.models.sit.model import SiTConfig
from flowsde.models.t5.model import T5Config
from flowsde_converters import blip, convert, open_clip, sit
from flowsde_converters import clip_flant5 as clip_flant5_table
from flowsde_converters import instructblip as instructblip_table
from flowsde_converters import owlv2 as owlv2_table
from flowsde_converters import qwen3_vl as qwen3_vl_table
from flowsde_converters.tables import unconvert

START, END = "<|startoftext|>", "<|endoftext|>"
PROMPTS = ["a photo of a red cat", "two dogs on a log"]
_MERGES = ["c a", "t h", "th e</w>", "ca t</w>", "o f</w>", "d o", "do g", "dog s</w>"]


def write_clip_tokenizer(folder: Path, length: int) -> int:
    """A byte-level vocabulary with a few merges; how large it is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words += [merge.replace(" ", "") for merge in _MERGES] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_MERGES, ""]))
    settings = {
        "tokenizer_class": "CLIPTokenizer", "bos_token": START, "eos_token": END,
        "pad_token": END, "unk_token": END, "model_max_length": length,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(words)


def write_t5_tokenizer(folder: Path) -> int:
    """A vocabulary trained on a few sentences; how large it is."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([*PROMPTS, "the cats and the dogs sat on a mat"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>",
        "unk_token": "<unk>", "model_max_length": 512,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


CHAT = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""
"""What Qwen3's template is for a user who says one thing."""


def qwen3_tokenizer(folder: Path, vision: bool = False) -> Any:
    """That of transformers, of bytes and a few merges, saved in a folder; `vision` has what chats
    about images need."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t"), ("d", "o"), ("do", "g"), ("Ġ", "o"), ("u", "s")]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if vision:
        merges += [("Y", "e"), ("Ye", "s"), ("N", "o")]
        special += [f"<|{name}|>" for name in ("vision_start", "vision_end", "image_pad")]
    words = [*alphabet, *("".join(pair) for pair in merges), *special]
    made = transformers.Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=merges, pad_token=special[0],
        eos_token=special[2], extra_special_tokens=special[1:], model_max_length=131072,
    )  # fmt: skip
    made.chat_template = CHAT
    made.save_pretrained(folder)
    return made


def fill(model: Any, seed: int, scale: float = 0.15) -> Any:
    """A torch model with normal weights: zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def flux_pipeline(folder: Path, *, dev: bool) -> Any:
    """The pipeline of diffusers, saved in a folder."""
    words = write_clip_tokenizer(folder / "words", 16)
    pieces = write_t5_tokenizer(folder / "pieces")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = diffusers.FluxPipeline(
            transformer=fill(
                diffusers.FluxTransformer2DModel(
                    in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16,
                    num_attention_heads=2, joint_attention_dim=20, pooled_projection_dim=24,
                    guidance_embeds=dev, axes_dims_rope=(4, 6, 6),
                ),
                1,
            ),
            vae=fill(
                diffusers.AutoencoderKL(
                    block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
                    up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=16,
                    norm_num_groups=4, use_quant_conv=False, use_post_quant_conv=False,
                    scaling_factor=0.3611, shift_factor=0.1159,
                ),
                2,
            ),
            text_encoder=fill(
                transformers.CLIPTextModel(
                    transformers.CLIPTextConfig(
                        vocab_size=words, hidden_size=24, intermediate_size=32,
                        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
                        bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=words - 1,
                    )
                ),
                3,
            ),
            text_encoder_2=fill(
                transformers.T5EncoderModel(
                    transformers.T5Config(
                        vocab_size=pieces, d_model=20, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                        feed_forward_proj="gated-gelu",
                    )
                ),
                4,
            ),
            tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "words"),
            tokenizer_2=transformers.AutoTokenizer.from_pretrained(folder / "pieces"),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
                shift=3.0 if dev else 1.0, use_dynamic_shifting=dev
            ),
        )  # fmt: skip
        made.save_pretrained(folder / "source")
    made.set_progress_bar_config(disable=True)
    return made


def sd3_pipeline(folder: Path) -> Any:
    """The pipeline of diffusers, saved in a folder: SD3.5-medium, with all kinds of blocks."""
    words = write_clip_tokenizer(folder / "words", 16)
    # As that of bigG, whose padding is another token.
    write_clip_tokenizer(folder / "words_2", 16)
    path = folder / "words_2" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!"}))
    pieces = write_t5_tokenizer(folder / "pieces")

    def tower(seed: int, projection: int, pad: int, **sizes: Any) -> Any:
        config = transformers.CLIPTextConfig(
            vocab_size=words, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=words - 2, eos_token_id=words - 1,
            pad_token_id=pad, projection_dim=projection, **sizes,
        )  # fmt: skip
        return fill(transformers.CLIPTextModelWithProjection(config), seed)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = diffusers.StableDiffusion3Pipeline(
            transformer=fill(
                diffusers.SD3Transformer2DModel(
                    sample_size=16, in_channels=4, out_channels=4, num_layers=4,
                    attention_head_dim=16, num_attention_heads=2, joint_attention_dim=40,
                    caption_projection_dim=32, pooled_projection_dim=14, pos_embed_max_size=12,
                    dual_attention_layers=(0, 1), qk_norm="rms_norm",
                ),
                1,
            ),
            vae=fill(
                diffusers.AutoencoderKL(
                    block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
                    up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
                    norm_num_groups=4, use_quant_conv=False, use_post_quant_conv=False,
                    scaling_factor=1.5305, shift_factor=0.0609,
                ),
                2,
            ),
            text_encoder=tower(3, 8, words - 1, hidden_size=16, intermediate_size=32),
            text_encoder_2=tower(
                4, 6, 0, hidden_size=20, intermediate_size=24, hidden_act="gelu"
            ),
            text_encoder_3=fill(
                transformers.T5EncoderModel(
                    transformers.T5Config(
                        vocab_size=pieces, d_model=40, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                        feed_forward_proj="gated-gelu",
                    )
                ),
                5,
            ),
            tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "words"),
            tokenizer_2=transformers.CLIPTokenizer.from_pretrained(folder / "words_2"),
            tokenizer_3=transformers.AutoTokenizer.from_pretrained(folder / "pieces"),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        )  # fmt: skip
        made.save_pretrained(folder / "source")
    made.set_progress_bar_config(disable=True)
    return made


def wan_pipeline(folder: Path) -> Any:
    """The pipeline of diffusers, saved in a folder; with Euler's steps, at times of Wan's own."""
    pieces = write_t5_tokenizer(folder / "pieces")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = diffusers.WanPipeline(
            transformer=fill(
                diffusers.WanTransformer3DModel(
                    num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
                    text_dim=20, ffn_dim=32, num_layers=2, rope_max_seq_len=64,
                ),
                1,
            ),
            vae=fill(
                diffusers.AutoencoderKLWan(
                    base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1,
                    temperal_downsample=[True], latents_mean=[0.3, -0.2, 0.1, 0.5],
                    latents_std=[1.5, 0.7, 2.0, 1.1], scale_factor_temporal=2,
                    scale_factor_spatial=2,
                ),
                2,
                0.3,
            ),
            text_encoder=fill(
                transformers.UMT5EncoderModel(
                    transformers.UMT5Config(
                        vocab_size=pieces, d_model=20, d_kv=8, d_ff=32, num_layers=2, num_heads=2
                    )
                ),
                4,
            ),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder / "pieces"),
            scheduler=diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0,
                solver_order=1, disable_corrector=list(range(50)),
            ),
        )  # fmt: skip
        made.save_pretrained(folder / "source")
    made.set_progress_bar_config(disable=True)
    return made


def zimage_pipeline(folder: Path, *, turbo: bool) -> Any:
    """The pipeline of diffusers, saved in a folder."""
    words = qwen3_tokenizer(folder / "words")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = diffusers.ZImagePipeline(
            transformer=fill(
                diffusers.ZImageTransformer2DModel(
                    in_channels=4, dim=24, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
                    cap_feat_dim=16, axes_dims=[4, 4, 4], axes_lens=[1024, 64, 64],
                ),
                1,
                0.3,
            ),
            vae=fill(
                diffusers.AutoencoderKL(
                    block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
                    up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
                    norm_num_groups=4, use_quant_conv=False, use_post_quant_conv=False,
                    scaling_factor=0.3611, shift_factor=0.1159,
                ),
                2,
            ),
            text_encoder=fill(
                transformers.Qwen3Model(
                    transformers.Qwen3Config(
                        vocab_size=len(words), hidden_size=16, intermediate_size=24,
                        num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
                        head_dim=8,
                    )
                ),
                3,
                0.3,
            ),
            tokenizer=words,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if turbo else 6.0),
        )  # fmt: skip
        made.save_pretrained(folder / "source")
    made.set_progress_bar_config(disable=True)
    return made


def converted(source: Path, out: Path) -> Path:
    """What our converter makes of it."""
    convert.run(convert.prepare(source), out)
    return out


def resealed(folder: Path) -> Path:
    """A converted pipeline, in which copied files were changed, as if it had been written so."""
    about = store.read_config(folder, store.PIPELINE, verify=False)
    store.write_config(folder, {k: v for k, v in about.items() if k not in ("files", "sha256")})
    return folder


def rows_first(latents: Any) -> np.ndarray:
    """Of packed tokens' twin in torch: latents [n, h, w, c] as [n, c, h, w]."""
    return np.array(np.asarray(latents).transpose(0, 3, 1, 2))


def clip(folder: Path) -> Path:
    """A converted CLIP with its tokenizer."""
    words = write_clip_tokenizer(folder / "source", 16)
    text = {
        "vocab_size": words, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": words - 2,
        "eos_token_id": words - 1, "pad_token_id": words - 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    model = fill(transformers.CLIPModel(config), 5)
    model.save_pretrained(folder / "source")
    return converted(folder / "source", folder / "out")


def hpsv2(folder: Path, version: str = "2.1") -> Path:
    """A converted HPSv2 of tiny towers, from a file as it is published and CLIP's tokenizer."""
    source = folder / "source"
    words = write_clip_tokenizer(source, 16)
    sizes: dict[str, Any] = {"depth": 2, "heads": 2, "activation": "gelu", "projection": 12}
    config = CLIPConfig(
        text=CLIPTextConfig(vocab=words, width=24, mlp=32, positions=16, **sizes),
        vision=CLIPVisionConfig(width=16, mlp=32, image=16, patch=8, **sizes),
    )
    rng = np.random.default_rng(9)
    shapes = parameters(abstract(open_clip.HPSV2, config))
    params = {k: rng.normal(size=p.shape, scale=0.15).astype(p.dtype) for k, p in shapes.items()}
    tensors = unconvert(open_clip.table(), params)
    state = {key: torch.tensor(a) for key, a in tensors.items()}
    name = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}[version]
    torch.save({"state_dict": state}, source / name)
    (source / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    return converted(source, folder / "out")


def write_bert_tokenizer(folder: Path) -> int:
    """Letters and the ends of words that they make; how many there are."""
    letters = [chr(i) for i in range(97, 123)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(words[:4])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(words)


def image_reward(folder: Path) -> Path:
    """A converted ImageReward of tiny towers, from a file as it is published and a tokenizer."""
    source = folder / "source"
    config = ImageRewardConfig(
        vision=CLIPVisionConfig(
            width=16, depth=2, heads=2, mlp=32, image=16, patch=8, activation="gelu", epsilon=1e-6
        ),
        text=BLIPTextConfig(
            vocab=write_bert_tokenizer(source), width=24, depth=2, heads=2, mlp=32, positions=40,
            image=16,
        ),
        head=AestheticConfig(widths=(24, 16, 8, 6, 5)),
    )  # fmt: skip
    rng = np.random.default_rng(10)
    shapes = parameters(abstract(blip.FAMILY, config))
    params = {k: rng.normal(size=p.shape, scale=0.15).astype(p.dtype) for k, p in shapes.items()}
    tensors = unconvert(blip.FAMILY.table(config, "original"), params)
    torch.save({key: torch.tensor(a) for key, a in tensors.items()}, source / "ImageReward.pt")
    heads = {"num_attention_heads": 2}
    (source / "config.json").write_text(json.dumps({"vision_config": heads, "text_config": heads}))
    return converted(source, folder / "out")


def clip_flant5(folder: Path) -> Path:
    """A converted CLIP-FlanT5 of tiny parts, from two files and an index, as it is published, and a
    tokenizer of T5's kind."""
    source = folder / "source"
    vocab = write_t5_tokenizer(source)
    config = CLIPFlanT5Config(
        vision=CLIPVisionConfig(width=16, depth=1, heads=2, mlp=32, image=16, patch=8),
        text=T5Config(
            vocab=vocab + 3, width=24, depth=2, decoder_depth=2, heads=2, head=8, mlp=32, buckets=8
        ),
        words=vocab,
    )
    rng = np.random.default_rng(12)
    shapes = parameters(abstract(clip_flant5_table.FAMILY, config))
    params = {k: rng.normal(size=p.shape, scale=0.3).astype(p.dtype) for k, p in shapes.items()}
    tensors = unconvert(clip_flant5_table.FAMILY.table(config, "transformers"), params)
    # Nothing reads the last block of the image tower.
    keys = "vision_tower.vision_tower.vision_model.encoder.layers."
    first = {k: a for k, a in tensors.items() if k.startswith(f"{keys}0.")}
    tensors |= {k.replace(f"{keys}0.", f"{keys}1."): 0.0 * a for k, a in first.items()}
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    parts = {key: names[i % 2] for i, key in enumerate(tensors)}
    for name in names:
        held = {key: torch.tensor(a) for key, a in tensors.items() if parts[key] == name}
        torch.save(held, source / name)
    index = {"metadata": {}, "weight_map": parts}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    settings = {"tie_word_embeddings": False, "vision_config": {"num_attention_heads": 2}}
    (source / "config.json").write_text(json.dumps(settings))
    return converted(source, folder / "out")


def instructblip(folder: Path) -> Path:
    """A converted InstructBLIP of tiny parts, from a folder as it is published, with tokenizers of
    T5's kind and, in another folder, of BERT's."""
    source = folder / "source"
    vocab = write_t5_tokenizer(source)
    config = InstructBLIPConfig(
        vision=CLIPVisionConfig(
            width=16, depth=2, heads=2, mlp=32, image=16, patch=8, activation="gelu", epsilon=1e-6
        ),
        qformer=QFormerConfig(
            vocab=write_bert_tokenizer(source / "qformer_tokenizer"), width=24, depth=2, heads=2,
            mlp=32, positions=160, image=16, queries=3,
        ),
        text=T5Config(
            vocab=vocab + 3, width=24, depth=2, decoder_depth=2, heads=2, head=8, mlp=32,
            buckets=8, activation="gelu",
        ),
    )  # fmt: skip
    rng = np.random.default_rng(14)
    shapes = parameters(abstract(instructblip_table.FAMILY, config))
    params = {k: rng.normal(size=p.shape, scale=0.3).astype(p.dtype) for k, p in shapes.items()}
    tensors = unconvert(instructblip_table.FAMILY.table(config, "transformers"), params)
    tensors = {key: np.ascontiguousarray(a) for key, a in tensors.items()}
    save_file(tensors, str(source / "model.safetensors"))
    heads = {"num_attention_heads": 2}
    settings = {"dense_act_fn": "gelu", "tie_word_embeddings": False}
    settings = {"vision_config": heads, "qformer_config": heads, "text_config": settings}
    (source / "config.json").write_text(json.dumps(settings))
    return converted(source, folder / "out")


def owlv2(folder: Path) -> Path:
    """A converted OWLv2 of tiny towers, from a file as it is published and CLIP's tokenizer."""
    source = folder / "source"
    sizes: dict[str, Any] = {"depth": 2, "heads": 2, "mlp": 32}
    config = Owlv2Config(
        text=CLIPTextConfig(
            vocab=write_clip_tokenizer(source, 48), width=16, positions=48, projection=16, **sizes
        ),
        vision=CLIPVisionConfig(width=16, image=32, patch=8, **sizes),
    )
    rng = np.random.default_rng(11)
    shapes = parameters(abstract(owlv2_table.FAMILY, config))
    params = {k: rng.normal(size=p.shape, scale=0.3).astype(p.dtype) for k, p in shapes.items()}
    tensors = unconvert(owlv2_table.FAMILY.table(config, "transformers"), params)
    tensors = {key: np.ascontiguousarray(a) for key, a in tensors.items()}
    save_file(tensors, source / "model.safetensors")
    heads = {"num_attention_heads": 2}
    (source / "config.json").write_text(json.dumps({"text_config": heads, "vision_config": heads}))
    return converted(source, folder / "out")


def qwen3_vl(folder: Path) -> Path:
    """A converted Qwen3-VL of tiny parts, from a file as it is published and its tokenizer."""
    source = folder / "source"
    vocab = len(qwen3_tokenizer(source, vision=True))
    config = Qwen3VLConfig(
        vision=Qwen3VLVisionConfig(width=16, depth=2, heads=2, mlp=24, places=6, deep=(0,)),
        text=Qwen3Config(
            vocab=vocab, width=24, depth=2, heads=2, shared=1, head=16, mlp=32, theta=5e6
        ),
        sections=(4, 2, 2),
        tied=True,
    )
    rng = np.random.default_rng(13)
    shapes = parameters(abstract(qwen3_vl_table.FAMILY, config))
    params = {k: rng.normal(size=p.shape, scale=0.3).astype(p.dtype) for k, p in shapes.items()}
    tensors = unconvert(qwen3_vl_table.FAMILY.table(config, "transformers"), params)
    tensors = {key: np.ascontiguousarray(a) for key, a in tensors.items()}
    save_file(tensors, str(source / "model.safetensors"))
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    settings = {
        "tie_word_embeddings": True,
        "text_config": {"rope_theta": 5e6, "rope_scaling": rope},
        "vision_config": {"num_heads": 2, "deepstack_visual_indexes": [0]},
    }
    (source / "config.json").write_text(json.dumps(settings))
    return converted(source, folder / "out")


def aesthetic_head(folder: Path) -> Path:
    """A converted head on embeddings of `clip`."""
    widths, places = (12, 8, 6, 5, 4, 1), (0, 2, 4, 6, 7)
    rng = np.random.default_rng(6)
    tensors = {}
    for i, place in enumerate(places):
        weight = rng.normal(size=(widths[i + 1], widths[i]))
        tensors[f"layers.{place}.weight"] = weight.astype(np.float32)
        tensors[f"layers.{place}.bias"] = rng.normal(size=widths[i + 1]).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "head.safetensors")
    return converted(folder / "head.safetensors", folder / "out")


SIT = SiTConfig(width=384, depth=1, heads=6, size=4, classes=3)


def sit_model(folder: Path, config: SiTConfig = SIT) -> Path:
    """A converted SiT of 4 x 4 latents and three classes."""
    rng = np.random.default_rng(7)
    shapes = parameters(abstract(sit.FAMILY, config))
    params = {k: rng.normal(size=p.shape, scale=0.1).astype(p.dtype) for k, p in shapes.items()}
    tensors = unconvert(sit.table(config, "original"), params)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: np.ascontiguousarray(a) for key, a in tensors.items()}
    save_file(tensors, folder / "sit.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"num_classes": config.classes, "prediction": "velocity"})
    )
    return converted(folder / "sit.safetensors", folder / "out")


def sd_vae(folder: Path) -> tuple[Any, Path]:
    """diffusers' autoencoder of four channels, and ours of the same weights."""
    vae = fill(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
            scaling_factor=0.18215,
        ),
        8,
    )  # fmt: skip
    vae.save_pretrained(folder / "source")
    return vae, converted(folder / "source", folder / "out")

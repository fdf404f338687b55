"""Tokens against those of `transformers`, on tiny tokenizers made here."""

import json
import warnings

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models

from flowsde.models.clip.model import CLIPTextConfig
from flowsde.models.common.tokenizers import bert_tokenizer, clip_tokenizer, t5_tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
SENTENCES = [
    "a photo of a red cat on the mat", "two dogs and three cats", "the dog sat on a log",
    "A painting, in oils: don't touch it!", "cats can't count to 42",
]  # fmt: skip
PROMPTS = [
    "a photo of a cat", "", "  Two   DOGS!! don't\n sit ", "éclair nai\u0308ve 日本 42", "x" * 7,
    "cat<|endoftext|>dog",
]  # fmt: skip


def write_clip(folder, **settings):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        "c a",
        "t h",
        "th e</w>",
        "ca t</w>",
        "o f</w>",
        "d o",
        "do g",
        "dog s</w>",
        "o n</w>",
    ]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words += [merge.replace(" ", "") for merge in merges]
    vocab = {word: i for i, word in enumerate([*words, START, END])}
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_t5(folder):
    tokenizer = Tokenizer(tokenizer_models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    # What is saved here must not count.
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=4)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5"))


def write_bert(folder):
    """Pieces of words, of which most are letters; as bert-base-uncased's file is made."""
    letters = [chr(i) for i in range(97, 123)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    words += ["cat", "dog", "##s", "the", "on", "!", ",", "'"]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(tokenizer_models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocab[name]) for name in ("[CLS]", "[SEP]")],
    )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, len(vocab)


def assert_same(ours, theirs):
    np.testing.assert_array_equal(ours.ids, theirs["input_ids"])
    np.testing.assert_array_equal(ours.mask, np.asarray(theirs["attention_mask"], bool))
    assert ours.ids.dtype == np.int32


def of_transformers(tokenizer, prompts, length):
    return tokenizer(
        prompts, padding="max_length", truncation=True, max_length=length, return_tensors="np"
    )


@pytest.mark.filterwarnings("ignore:a prompt has")
@pytest.mark.parametrize("length", [77, 8])
@pytest.mark.parametrize("pad", [None, "!"])
def test_clip(tmp_path, length, pad):
    transformers = pytest.importorskip("transformers")
    folder = write_clip(tmp_path / "clip", **({"pad_token": pad} if pad else {}))
    theirs = transformers.CLIPTokenizer.from_pretrained(str(folder))
    prompts = [*PROMPTS, "a cat and a dog on the log " * 20]
    ours = clip_tokenizer(folder, length=length)(prompts)
    assert_same(ours, of_transformers(theirs, prompts, length))
    # And from the one file that `transformers` saves.
    theirs.save_pretrained(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "tokenizer.json").exists()
    again = clip_tokenizer(tmp_path / "saved", length=length)(prompts)
    np.testing.assert_array_equal(again.ids, ours.ids)


@pytest.mark.filterwarnings("ignore:a prompt has")
@pytest.mark.parametrize("length", [35, 6])
def test_bert(tmp_path, length):
    transformers = pytest.importorskip("transformers")
    folder, words = write_bert(tmp_path / "bert")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    prompts = [*PROMPTS, "The dogs, on a cat's mat! " * 9]
    ours = bert_tokenizer(folder, length=length, vocab=words)(prompts)
    assert_same(ours, of_transformers(theirs, prompts, length))
    np.testing.assert_array_equal(ours.ids != 0, ours.mask)
    with pytest.raises(ValueError, match=f"ids go to {words - 1}, expected at most {words - 2}"):
        bert_tokenizer(folder, length=length, vocab=words - 1)
    with pytest.raises(ValueError, match="it pads by the token 0, expected 1"):
        bert_tokenizer(folder, length=length, vocab=words, pad=1)
    with pytest.raises(ValueError, match=r"must have a tokenizer.json, got \[\]"):
        bert_tokenizer(tmp_path / "absent", length=length, vocab=words)


def test_clip_by_hand(clip_folder):
    tokenizer = clip_tokenizer(clip_folder, length=7)
    vocab = json.loads((clip_folder / "vocab.json").read_text())
    words = [START, "cat</w>", "a</w>", "a</w>", END, END, END]
    tokens = tokenizer(["cat  A a"])
    assert tokens.ids.tolist() == [[vocab[word] for word in words]]
    assert tokens.mask.tolist() == [[True] * 5 + [False] * 2]


@pytest.mark.filterwarnings("ignore:a prompt has")
@pytest.mark.parametrize("length", [512, 8])
def test_t5(t5_folder, length):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(t5_folder / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    prompts = [*PROMPTS, *SENTENCES]
    ours = t5_tokenizer(t5_folder, length=length)(prompts)
    assert_same(ours, of_transformers(theirs, prompts, length))
    assert (ours.ids[:, -1] <= 1).all()


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_what_is_cut_is_said(clip_folder, t5_folder, kind):
    make, folder = (clip_tokenizer, clip_folder) if kind == "clip" else (t5_tokenizer, t5_folder)
    prompt = "the cat, the dogs"
    whole = make(folder, length=60)([prompt])
    used = int(whole.mask.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits = make(folder, length=used)([prompt])
    np.testing.assert_array_equal(fits.ids[0], whole.ids[0, :used])
    with pytest.warns(UserWarning, match="left out: '") as caught:
        cut = make(folder, length=used - 2)([prompt])
    # The end stays, and the text before the cut is what the tokens say.
    assert cut.ids[0, -1] == whole.ids[0, used - 1]
    np.testing.assert_array_equal(cut.ids[0, :-1], whole.ids[0, : used - 3])
    rest = str(caught[0].message).split("left out: ")[1].strip("'")
    assert prompt.endswith(rest) and 0 < len(rest) < len(prompt)
    kept = make(folder, length=60)([prompt.removesuffix(rest)])
    np.testing.assert_array_equal(kept.ids[0, : used - 3], cut.ids[0, :-1])


def test_special_tokens_by_the_folders_names(tmp_path):
    folder = write_clip(tmp_path / "clip")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": {"content": "!"}, "eos_token": "#"})
    )
    vocab = json.loads((folder / "vocab.json").read_text())
    tokens = clip_tokenizer(folder, length=5)(["cat"]).ids[0]
    assert tokens.tolist() == [vocab[w] for w in (START, "cat</w>", "#", "!", "!")]


def test_folders_that_do_not_do_are_named(tmp_path, t5_folder, clip_folder):
    with pytest.raises(ValueError, match=r"vocab.json and a merges.txt, got \[\]"):
        clip_tokenizer(tmp_path / "none")
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"got \['spiece.model'\]; save one.*save_pretrained"):
        t5_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="'<|startoftext|>' is not in the tokenizer's vocabulary"):
        clip_tokenizer(t5_folder)
    with pytest.raises(ValueError, match="sequence of strings, got the string 'cat'"):
        t5_tokenizer(t5_folder)("cat")
    with pytest.raises(ValueError, match="length must be at least 3, got 2"):
        clip_tokenizer(clip_folder, length=2)


def clip_of(vocab, eos=None):
    return CLIPTextConfig(vocab=vocab, width=8, heads=2, eos=eos)


def test_tokens_are_those_of_the_model(tmp_path):
    """Rows that a model does not have are read as its last one, without a word."""
    folder = write_clip(tmp_path / "clip")
    vocab = json.loads((folder / "vocab.json").read_text())
    rows, end = len(vocab), vocab[END]
    for config in (clip_of(rows), clip_of(rows + 7), clip_of(rows, eos=end)):
        clip_tokenizer(folder, config=config)
    with pytest.raises(ValueError, match=rf"its ids go to {rows - 1}, expected at most {rows - 2}"):
        clip_tokenizer(folder, config=clip_of(rows - 1))
    with pytest.raises(ValueError, match=rf"ends a text by the token {end}, expected {end - 1}"):
        clip_tokenizer(folder, config=clip_of(rows, eos=end - 1))
    moved = {word: i + 1000 for word, i in vocab.items()}
    (folder / "vocab.json").write_text(json.dumps(moved))
    with pytest.raises(ValueError, match=r"clip is not the tokenizer of this model: its ids go to"):
        clip_tokenizer(folder, config=clip_of(rows))
    moved = vocab | {END: vocab[START], START: end}
    (folder / "vocab.json").write_text(json.dumps(moved))
    with pytest.raises(ValueError, match=rf"ends a text by the token {end - 1}, expected {end}"):
        clip_tokenizer(folder, config=clip_of(rows))


def test_t5_tokens_are_those_of_the_model(t5_folder):
    rows = Tokenizer.from_file(str(t5_folder / "tokenizer.json")).get_vocab_size()
    t5_tokenizer(t5_folder, vocab=rows)
    with pytest.raises(ValueError, match=rf"its ids go to {rows - 1}, expected at most {rows - 2}"):
        t5_tokenizer(t5_folder, vocab=rows - 1)


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "pad_token", "unk_token"])
def test_special_tokens_are_in_the_vocabulary(tmp_path, name):
    """One that is not would get an id that no model knows."""
    folder = write_clip(tmp_path / "clip", **{name: "<gone>"})
    with pytest.raises(ValueError, match=r"clip: the special token '<gone>' is not in the token"):
        clip_tokenizer(folder)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("vocab.json", "", r"vocab\.json cannot be read"),
        ("vocab.json", "[]", r"vocab\.json must be an object, got \[\]"),
        ("vocab.json", '{"a": -1}', r"vocab\.json: a must be an integer from 0"),
        ("vocab.json", '{"a": "1"}', r"vocab\.json: a must be an integer from 0"),
        ("vocab.json", '{"a": 1e99}', r"vocab\.json: a must be an integer from 0"),
        ("vocab.json", '{"a": 1, "b": 1}', r"vocab\.json has two tokens of one id"),
        ("vocab.json", "{}", r"special token '<.endoftext.>' is not in the tokenizer's vocabulary"),
        ("vocab.json", "\xff", r"vocab\.json cannot be read|unknown"),
        ("merges.txt", "a", r"vocab\.json and merges\.txt cannot be read"),
        ("merges.txt", "zz yy", r"vocab\.json and merges\.txt cannot be read"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json cannot be read"),
        ("tokenizer_config.json", "3", r"tokenizer_config\.json must be an object"),
        ("tokenizer_config.json", '{"eos_token": 3}', r"config\.json: eos_token must be a text"),
        ("tokenizer_config.json", '{"eos_token": {}}', r"eos_token lacks the field content"),
        ("special_tokens_map.json", '{"pad_token": []}', r"map\.json: pad_token must be a text"),
        ("tokenizer.json", "", r"tokenizer\.json cannot be read"),
        ("tokenizer.json", "{}", r"tokenizer\.json cannot be read"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": 3}}', r"cannot be read"),
    ],
)
def test_files_that_are_broken_are_named(tmp_path, file, content, said):
    folder = write_clip(tmp_path / "clip")
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        clip_tokenizer(folder)
    assert str(folder) in str(caught.value)

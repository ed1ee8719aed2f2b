"""What the parity tests share: random references, small tokenizers trained here, prompts, comparison."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.envs.tasks import BODIES, get_task, tasks_of
from bitagent_jax.mllm import tables

TOLERANCE = 1e-5
NO_TORCH = "the references are torch models: pip install torch"
ODD = [
    "Robot walks, fast & clean!", "UPPER case", "spider   running\tfast", "naïve café", "don't stop 123 times.",
    "a " * 120, "x", "¿qué?", "back-flip (twice)", "standing…",
]  # fmt: skip


def torch():
    """Return torch, or skip the test."""
    return pytest.importorskip("torch", reason=NO_TORCH)


@functools.cache
def prompts() -> list[str]:
    """Every task's prompt, and sentences with capitals, accents, punctuation, tabs, or too many words."""
    names = {name for body in BODIES for name in tasks_of(body)}
    return sorted({get_task(name).prompt for name in names}) + ODD


def randomize(model, seed: int = 0):
    """Give every parameter of a torch model, norms and biases too, a value that no other has; returns it, frozen."""
    generator = torch().Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch().randn(parameter.shape, generator=generator)
        matrix = parameter.ndim > 1 and "embedding" not in name and "pos" not in name
        scale = 1.0 / parameter[0].numel() ** 0.5 if matrix else 0.3
        base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = base + scale * noise
    return model.eval().requires_grad_(False)


def frames(count: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """Make uint8 frames [count, height, width, 3] of blobs and noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 8, width // 8, 3))
    smooth = coarse.repeat(8, 1).repeat(8, 2) + rng.normal(0, 20, (count, height, width, 3))
    return np.clip(smooth, 0, 255).astype(np.uint8)


def state_dict(model) -> list[tuple[str, np.ndarray]]:
    """Return a torch model's tensors by name, as a checkpoint holds them."""
    return [(name, value.numpy()) for name, value in model.state_dict().items()]


def ported(table, make, model):
    """Build our module with a torch model's weights."""
    graph, template = tables.template(make)
    return nnx.merge(graph, tables.fill(table, state_dict(model), template, "the reference"))


def close(ours, theirs, tolerance: float = TOLERANCE) -> float:
    """Assert that two arrays differ by at most ``tolerance`` (times the largest value, if that is above 1)."""
    theirs = theirs.numpy() if hasattr(theirs, "numpy") else np.asarray(theirs)
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    error = float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))
    assert error <= tolerance, f"differ by {error:.2e}"
    return error


def exact(function, *args):
    """Jit and call."""
    return jax.jit(function)(*map(jnp.asarray, args))


def normalized(x):
    """Scale the last axis of a torch tensor to unit norm."""
    return x / x.norm(dim=-1, keepdim=True)


def full_size(make) -> int:
    """Count the parameters of a model that is never built."""
    return tables.count(tables.template(make)[1])


def corpus() -> list[str]:
    """Text to train small tokenizers on."""
    return [sentence.lower() for sentence in prompts()] * 3


def clip_tokenizer(folder) -> None:
    """Train byte-pair merges on the prompts and save them as CLIP's tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    small = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    small.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False,
    )  # fmt: skip
    small.train_from_iterator(corpus(), trainer)
    vocab = small.get_vocab()
    for letter in alphabet:
        vocab.setdefault(letter + "</w>", len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    merges = [tuple(pair) for pair in json.loads(small.to_str())["model"]["merges"]]
    CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77).save_pretrained(folder)


def clip_config(end: int):
    """Return a tiny config of CLIP with that end-of-text token."""
    from transformers import CLIPConfig

    small = dict(num_attention_heads=4, hidden_size=32, intermediate_size=64)
    vision = small | dict(num_hidden_layers=3, image_size=32, patch_size=8)
    text = small | dict(num_hidden_layers=2, vocab_size=1100, bos_token_id=None, eos_token_id=end)
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)


def tiny_clip(folder) -> None:
    """Fill a folder like a downloaded one with config, weights, preprocessor and tokenizer of a tiny random CLIP."""
    torch()
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    clip_tokenizer(folder)
    end = AutoTokenizer.from_pretrained(folder).eos_token_id
    randomize(CLIPModel(clip_config(end))).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def bert_vocabulary(folder) -> int:
    """Train word pieces on the prompts, save them as vocab.txt, and return how many there are."""
    from tokenizers import BertWordPieceTokenizer

    small = BertWordPieceTokenizer()
    small.train_from_iterator(corpus(), vocab_size=300, show_progress=False)
    words = sorted(small.get_vocab(), key=small.get_vocab().get)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return len(words)


def sentencepiece_model(folder) -> int:
    """Train pieces on the prompts, save them as SigLIP's spiece.model, and return how many there are."""
    import sentencepiece

    prefix = folder / "spiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_prefix=str(prefix), vocab_size=200, hard_vocab_limit=False,
        bos_id=-1, eos_id=1, unk_id=2, pad_id=0, minloglevel=2,
    )  # fmt: skip
    from transformers import SiglipTokenizer

    SiglipTokenizer(str(prefix) + ".model").save_pretrained(folder)
    return 260


def siglip2_tokenizer(folder) -> int:
    """Train byte-pair merges on the prompts, save them as SigLIP 2's tokenizer, and return how many ids there are."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import Siglip2Tokenizer

    small = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    small.normalizer = normalizers.Replace(" ", "▁")
    small.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    small.train_from_iterator(corpus(), trainer)
    model = json.loads(small.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    Siglip2Tokenizer(vocab=model["vocab"], merges=merges, model_max_length=64).save_pretrained(folder)
    return len(model["vocab"])


def videoprism_tokenizer(folder) -> int:
    """Train pieces on the prompts, save them as VideoPrism's tokenizer, and return how many ids there are."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import VideoPrismTokenizer

    small = Tokenizer(models.Unigram())
    small.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    small.train_from_iterator(corpus(), trainer)
    pieces = [tuple(piece) for piece in json.loads(small.to_str())["model"]["vocab"]]
    VideoPrismTokenizer(vocab=pieces, extra_ids=0, model_max_length=64).save_pretrained(folder)
    return len(pieces)

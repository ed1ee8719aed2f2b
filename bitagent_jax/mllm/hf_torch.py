"""Any dual encoder of ``transformers``, run by torch: for embedding data sets offline, not for training on devices.

It needs the extra ``[torch]``. What it can do:

- models of ``AutoModel`` that have ``get_text_features`` and ``get_image_features`` or ``get_video_features``, and
  answer each input with one vector of a joint space (CLIP, SigLIP, ALIGN, AltCLIP, Chinese-CLIP, VideoPrism ...);
- a picture model's clip is the mean of its frames, as of ``clip``; video models need torchvision too.

What it cannot: models whose embedding is a token of a language model (Qwen3-VL-Embedding, EmbeddingGemma), models
whose text depends on the video (X-CLIP), code that a repository brings along, pickled weights. Sentences go to the
folder's tokenizer as they are: SigLIP 2 wants them in lower case (``siglip2`` sees to that). It does not shard, shares
no work between overlapping windows of a video model, and runs on torch's device beside JAX, whose memory it does not
see.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitagent_jax.mllm.encoder import CLIP, check_frames, check_sentences
from bitagent_jax.mllm.sources import Source, WeightsError, first_line, locate

EXAMPLES = ("google/siglip-base-patch16-224", "openai/clip-vit-large-patch14")
_BATCH = 16
_LONGEST = 512  # tokens, where neither model nor tokenizer set a limit


class TorchEncoder:
    """A torch model as an ``Encoder``; made by ``load``."""

    name = "hf_torch"

    def __init__(self, source: Source):
        torch = _torch()
        import transformers

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        self._model = _from_folder(transformers.AutoModel, source, dtype=dtype, use_safetensors=True)
        self._model = self._model.eval().to(self._device)
        self._video = hasattr(self._model, "get_video_features")
        self.stride = CLIP if self._video else 1
        seen = self._video or hasattr(self._model, "get_image_features")
        if not seen or not hasattr(self._model, "get_text_features"):
            kind, needs = type(self._model).__name__, "get_text_features and get_image_features or get_video_features"
            raise ValueError(f"{source}: {kind} has no joint space that is known here ({needs})")
        processor = transformers.AutoVideoProcessor if self._video else transformers.AutoImageProcessor
        self._look = _from_folder(processor, source)
        self._tokenizer = _from_folder(transformers.AutoTokenizer, source)
        self.num_frames = getattr(self._model.config.vision_config, "num_frames", 8) if self._video else 8
        self.embed_dim = self.embed_text(["x"]).shape[-1]
        text = f"{self.name}/{source.digest()}/{torch.__version__}/{transformers.__version__}/{self.num_frames}/{dtype}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    def embed_video(self, clips: np.ndarray) -> np.ndarray:
        """Embed clips, uint8 [B, N, H, W, 3]; returns float32 [B, D]."""
        clips = check_frames(clips, (None, self.num_frames), f"clips [B, {self.num_frames}, H, W, 3]")
        if self._video:
            return self._batched(self._embed_clips, clips)
        each = self._batched(self._embed_frames, clips.reshape(-1, *clips.shape[2:]))
        return _unit(each.reshape(*clips.shape[:2], self.embed_dim).mean(1))

    def embed_text(self, sentences: Sequence[str]) -> np.ndarray:
        """Embed n sentences; returns float32 [n, D]. ValueError if there is none, or one is blank."""
        return self._batched(self._embed_sentences, check_sentences(sentences))

    def embed_windows(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embed every window of frames uint8 [L, H, W, 3]; see ``Encoder.embed_windows``."""
        frames = check_frames(frames, (None,), "frames [L, H, W, 3]")
        full = np.arange(len(frames)) >= self.num_frames - 1
        out = np.zeros((len(frames), self.embed_dim), np.float32)
        if full.any():
            rows = frames if self._video else self._batched(self._embed_frames, frames)
            windows = np.moveaxis(np.lib.stride_tricks.sliding_window_view(rows, self.num_frames, 0), -1, 1)
            out[full] = self._batched(self._embed_clips, windows) if self._video else _unit(windows.mean(1))
        return out, full

    def _batched(self, function: Any, items: Any) -> np.ndarray:
        parts = [function(items[start : start + _BATCH]) for start in range(0, len(items), _BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, self.embed_dim), np.float32)

    def _embed_frames(self, frames: np.ndarray) -> np.ndarray:
        return self._call(self._model.get_image_features, self._look(list(frames), return_tensors="pt"))

    def _embed_clips(self, clips: np.ndarray) -> np.ndarray:
        inputs = self._look([np.ascontiguousarray(clip) for clip in clips], return_tensors="pt", do_sample_frames=False)
        return self._call(self._model.get_video_features, inputs)

    def _embed_sentences(self, sentences: list[str]) -> np.ndarray:
        config = getattr(self._model.config, "text_config", self._model.config)
        limits = (getattr(config, "max_position_embeddings", _LONGEST), self._tokenizer.model_max_length, _LONGEST)
        fixed = {"padding": "max_length", "truncation": True, "max_length": min(limits)}
        return self._call(self._model.get_text_features, self._tokenizer(list(sentences), return_tensors="pt", **fixed))

    def _call(self, function: Any, inputs: Any) -> np.ndarray:
        with self._torch.inference_mode():
            moved = {name: value.to(self._device) for name, value in inputs.items()}
            moved = {n: v.to(self._model.dtype) if v.is_floating_point() else v for n, v in moved.items()}
            out = function(**moved)
        out = getattr(out, "pooler_output", out)
        if out is None or out.ndim not in (2, 3) or (out.ndim == 3 and out.shape[1] != 1):
            raise ValueError(f"{type(self._model).__name__} does not answer with one vector each")
        return _unit(out.reshape(len(out), -1).float().cpu().numpy())


def load(weights: str) -> TorchEncoder:
    """Load a model of ``transformers`` from a folder or repository.

    Raises:
        WeightsError: files are missing, gated or damaged.
        ValueError: torch is not installed, or the model is none of those that this encoder can run.
    """
    _torch()
    return TorchEncoder(locate("hf_torch", weights, EXAMPLES))


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ValueError("mllm.encoder=hf_torch needs torch: pip install 'bitagent_jax[torch]'") from error
    return torch


def _from_folder(kind: Any, source: Source, **options: Any) -> Any:
    try:
        return kind.from_pretrained(str(source.folder), **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise WeightsError(
            f"{source}: {kind.__name__} cannot be made of them ({first_line(error)}); {source.command()}"
        ) from error


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

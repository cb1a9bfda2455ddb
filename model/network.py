"""The network of MM-EMOR: a text branch, a voice branch, and a head over both.

Architecture: Adel, Fathalla, Abo ElFarag 2023, Big Data Cogn. Comput. 7, 164; with real lengths in place of the paper's
padding to 1000 tokens.

Legend: N items, W windows (rows of a batch, W >= N), T tokens, S samples, D width of a pooled text, V width of a pooled
recording, C classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import RobertaModel

from emostream.model.features import SpeechImages, Variant
from emostream.model.mobilenet import MobileNet


class TextBranch(nn.Module):
    """Token ids -> one vector per row: the encoder's outputs, averaged over real tokens."""

    def __init__(self, encoder: RobertaModel) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def width(self) -> int:
        """Numbers in a pooled vector."""
        return int(self.encoder.config.hidden_size)

    def forward(self, ids_WT: Tensor) -> Tensor:
        """Encode rows of token ids.

        Args:
            ids_WT: Token ids, int64, rows filled up with the encoder's pad id.

        Returns:
            pooled_WD, float32.
        """
        mask_WT = ids_WT != self.encoder.config.pad_token_id
        hidden_WTD = self.encoder(ids_WT, attention_mask=mask_WT).last_hidden_state
        weights_WT1 = mask_WT.unsqueeze(-1).float()
        pooled_WD: Tensor = (hidden_WTD.float() * weights_WT1).sum(1) / weights_WT1.sum(1)
        return pooled_WD


class VoiceBranch(nn.Module):
    """Waveforms -> one vector each: images of speech through MobileNet.

    Args:
        variant: Channels of the image: `mel`, `chroma` or `both`.
        width_multiplier: MobileNet's.
    """

    def __init__(self, *, variant: Variant, width_multiplier: float) -> None:
        super().__init__()
        self.images = SpeechImages(variant)
        self.body = MobileNet(channels=len(self.images.channels), width_multiplier=width_multiplier)

    @property
    def width(self) -> int:
        """Numbers in a pooled vector."""
        return self.body.width

    def forward(self, wave_WS: Tensor) -> Tensor:
        """Return pooled_WV, float32, for windows of one length, a multiple of the hop."""
        with torch.autocast(wave_WS.device.type, enabled=False):
            images_WKFM = self.images(wave_WS)
        pooled_WV: Tensor = self.body(images_WKFM)
        return pooled_WV


class SharedDropout(nn.Module):
    """Dropout whose mask is the same for every token of a text.

    Source: Gal and Ghahramani 2016, arXiv:1512.05287. A mask per token took a fifth of a training step on a CPU.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self._probability = probability

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return hidden_BTD with some of its D features set to zero, the rest scaled up, in training only."""
        mask_B1D = torch.ones_like(hidden_BTD[:, :1])
        return hidden_BTD * nn.functional.dropout(mask_B1D, self._probability, self.training)


def prepare_for_training(encoder: RobertaModel, device: torch.device) -> None:
    """Make an encoder drop whole features of a text and nothing in its attention.

    On a CPU the fused attention's backward pass took more than a third of a training step; plain products are faster.
    """
    if device.type == "cpu":
        encoder.set_attn_implementation("eager")
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                in_attention = hasattr(module, "query")
                setattr(module, name, nn.Dropout(0.0) if in_attention else SharedDropout(child.p))


class Head(nn.Module):
    """A pooled vector -> logits: dense + ReLU, dropout, and a last layer."""

    def __init__(self, *, width_in: int, width: int, dropout: float, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(width, classes)

    def forward(self, pooled_ND: Tensor) -> Tensor:
        """Return logits_NC."""
        logits_NC: Tensor = self.classify(self.dropout(torch.relu(self.dense(pooled_ND))))
        return logits_NC


def build_heads(classes: Mapping[str, tuple[str, ...]], *, width_in: int, width: int, dropout: float) -> nn.ModuleDict:
    """Return one head per question, by its name."""
    return nn.ModuleDict(
        {
            name: Head(width_in=width_in, width=width, dropout=dropout, classes=len(labels))
            for name, labels in classes.items()
        }
    )


class FusionHead(nn.Module):
    """Pooled text and pooled voice -> logits over the seven labels; a missing half is a learned placeholder.

    Args:
        text_width: D.
        voice_width: V; 0 for a model without voice.
        width: Units of the dense layer.
        dropout: The paper's 0.3.
        classes: Number of labels.
    """

    def __init__(self, *, text_width: int, voice_width: int, width: int, dropout: float, classes: int) -> None:
        super().__init__()
        self.absent_text = nn.Parameter(torch.zeros(text_width))
        self.absent_voice = nn.Parameter(torch.zeros(voice_width))
        self.head = Head(width_in=text_width + voice_width, width=width, dropout=dropout, classes=classes)

    def forward(self, text_ND: Tensor | None, voice_NV: Tensor | None) -> Tensor:
        """Return logits_NC for texts, recordings or pairs.

        Args:
            text_ND: Pooled texts; None where there are only recordings.
            voice_NV: Pooled recordings; None where there are only texts.
        """
        given = text_ND if text_ND is not None else voice_NV
        if given is None:
            raise ValueError("neither text nor voice is given")
        if text_ND is None:
            text_ND = self.absent_text.expand(len(given), -1)
        if voice_NV is None:
            voice_NV = self.absent_voice.expand(len(given), -1)
        logits_NC: Tensor = self.head(torch.cat([text_ND, voice_NV], dim=1))
        return logits_NC


class FusedEmotionModel(nn.Module):
    """The whole model: text-only, voice-only and fused paths, and the heads whose answers are attributes.

    Args:
        text: The text branch.
        voice: The voice branch; None for a model that reads texts alone.
        fusion: The head over both.
        attributes: Heads over the pooled text, by name.
    """

    def __init__(
        self, *, text: TextBranch, voice: VoiceBranch | None, fusion: FusionHead, attributes: nn.ModuleDict
    ) -> None:
        super().__init__()
        self.text = text
        self.voice = voice
        self.fusion = fusion
        self.attributes = attributes

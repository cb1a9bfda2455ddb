"""The network: encoder, mean pooling over real tokens, dense + ReLU, dropout, seven logits.

Architecture of MM-EMOR's text branch and head (Adel, Fathalla, Abo ElFarag 2023, Big Data Cogn. Comput. 7, 164),
with real lengths in place of the paper's padding to 1000 tokens.

Legend: N texts, W windows (rows of a batch, W >= N), T tokens, D encoder width, C classes.
"""

import torch
from torch import Tensor, nn
from transformers import RobertaModel


class TextEmotionModel(nn.Module):
    """Text -> logits over the labels.

    Args:
        encoder: The text encoder.
        head_width: Units of the dense layer between pooling and labels.
        dropout: Dropout before the last layer; the paper's 0.3.
        classes: Number of labels.
    """

    def __init__(self, encoder: RobertaModel, *, head_width: int, dropout: float, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dense = nn.Linear(encoder.config.hidden_size, head_width)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(head_width, classes)

    def pool(self, ids_WT: Tensor) -> Tensor:
        """Encode rows of token ids and average their real tokens.

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

    def head(self, pooled_ND: Tensor) -> Tensor:
        """Return logits_NC for one pooled vector per text."""
        logits: Tensor = self.classify(self.dropout(torch.relu(self.dense(pooled_ND))))
        return logits

    def forward(self, ids_NT: Tensor) -> Tensor:
        """Return logits_NC for texts of one window each."""
        return self.head(self.pool(ids_NT))

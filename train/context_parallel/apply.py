"""Context parallelism put onto a model and onto its batches, from outside.

whole sequences --held--> this rank's tokens, targets and positions, and the documents of its ring
model --spread--> its blocks attend over the ranks of the group
"""

import numpy as np
import torch
from torch import Tensor

from data.batches import Batch
from train.context_parallel.attention import attention
from train.context_parallel.groups import Group
from train.context_parallel.placement import Context, Place, check_documents, positions, zigzag
from train.model import Attention, Transformer


def held(batch: Batch, context: Context, place: Place) -> Batch:
    """What the rank at `place` holds of whole sequences. Its documents are (ring, B, S / ring): of all ranks of the
    ring. ValueError where document ids fall along a sequence."""
    length = batch.tokens.shape[1]
    own, documents = positions(context, length, place), batch.documents
    if documents is not None:
        check_documents(documents)
        documents = np.ascontiguousarray(np.moveaxis(documents[:, zigzag(length, context.ring)], 1, 0))
    return Batch(batch.tokens[:, own], batch.targets[:, own], documents, own)


def spread(model: Transformer, group: Group) -> None:
    """Lets `model` compute on what the ranks of `group` hold; numbers are those of one device, to rounding."""

    def attend(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, scale: float | None) -> Tensor:
        return attention(q, k, v, documents, group, q.shape[-1] ** -0.5 if scale is None else scale)

    model.mask = torch.from_numpy  # on the host, where they decide what is done at all
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = attend

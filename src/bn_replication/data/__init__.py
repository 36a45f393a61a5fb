"""Data: verified sources, tensors resident on the device, order, augmentation."""

from bn_replication.data.augment import augment
from bn_replication.data.images import Images, Split, channel_statistics, load, to_input
from bn_replication.data.order import batch_indices, epoch_order
from bn_replication.data.sources import ensure
from bn_replication.data.whiten import LinearInput, conditioning

__all__ = [
    "Images",
    "LinearInput",
    "Split",
    "augment",
    "batch_indices",
    "channel_statistics",
    "conditioning",
    "ensure",
    "epoch_order",
    "load",
    "to_input",
]

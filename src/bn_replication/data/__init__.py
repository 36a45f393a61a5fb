"""Data: verified sources, tensors resident on the device or images read ahead from disk, order, augmentation."""

from bn_replication.data.augment import augment
from bn_replication.data.crops import DRAWS, centre_boxes, random_boxes
from bn_replication.data.imagenet import Ahead, Ask, Pictures
from bn_replication.data.images import Images, Split, channel_statistics, load, to_input
from bn_replication.data.order import batch_indices, epoch_order
from bn_replication.data.sources import ensure
from bn_replication.data.whiten import LinearInput, conditioning

__all__ = [
    "DRAWS",
    "Ahead",
    "Ask",
    "Images",
    "LinearInput",
    "Pictures",
    "Split",
    "augment",
    "batch_indices",
    "centre_boxes",
    "channel_statistics",
    "conditioning",
    "ensure",
    "epoch_order",
    "load",
    "random_boxes",
    "to_input",
]

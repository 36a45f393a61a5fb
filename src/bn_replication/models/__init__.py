"""The paper's two networks: ``mlp.MLP``, the sigmoid net of Fig. 1, and ``inception.Inception``, Fig. 5."""

from bn_replication.models.layers import ACTIVATIONS, activation

__all__ = ["ACTIVATIONS", "activation"]

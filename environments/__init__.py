"""One vector-environment protocol and its adapters: Procgen, Gymnasium, a deterministic fake."""

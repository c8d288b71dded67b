"""Where a gang goes: pure functions of the state. ``pack`` finds nodes, ``assign`` hands out GPUs by identity."""

"""Where a gang goes: pure functions of the state. ``choose`` picks the policy, ``assign`` hands out the GPUs."""

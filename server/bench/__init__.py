"""The benchmark: the whole server over loopback HTTP, interleaved with plain `generate` as the yardstick."""

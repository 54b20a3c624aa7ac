"""Benchmarks, judges and reports: how safe a target is behind a defence, and at what cost."""

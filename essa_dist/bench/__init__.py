"""``essa bench``: measurements that a user can repeat."""

from essa_dist.bench.data import BenchDataConfig, bench_data

__all__ = ["BenchDataConfig", "bench_data"]

"""Many runs, each a process of its own: benchmarks, sweeps, runs that must fail."""

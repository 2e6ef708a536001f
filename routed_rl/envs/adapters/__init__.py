"""Environments of other packages, unmodified: `env.NAME.path=routed_rl.envs.adapters.MODULE:CLASS`.

Heavy packages are imported when a class is built. A feature of a package that its adapter does not cover is refused by name.
"""

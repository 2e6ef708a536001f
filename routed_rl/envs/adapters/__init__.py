"""Environments of other packages, unmodified: `env.NAME.path=routed_rl.envs.adapters.MODULE:CLASS`.

Heavy packages are imported when a class is built. What a package has beyond an adapter is refused by name.
"""

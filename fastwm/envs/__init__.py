"""Environments behind one small interface: actions in, dicts of arrays out, one row an observation."""

from ..extras import needs

with needs("agents", "fastwm.envs"):
    from .envpool import env_seeds
    from .gym import WrongNumber
    from .registry import imports_code, make_env, register
    from .spaces import ArrayTree
    from .vec import Action, Backend, Record, UnknownEnv, VecEnv, describe

__all__ = [
    "Action",
    "ArrayTree",
    "Backend",
    "Record",
    "UnknownEnv",
    "VecEnv",
    "WrongNumber",
    "describe",
    "env_seeds",
    "imports_code",
    "make_env",
    "register",
]

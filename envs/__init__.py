"""Tasks with a verifiable outcome. Importing this package registers the `sppo/...` ids with Gymnasium."""

from sppo.envs.adapters import EpisodeEnv, EpisodeVectorEnv
from sppo.envs.episodes import Episodes, Snapshot
from sppo.envs.registry import episodes, register
from sppo.envs.replay import GymEpisodes
from sppo.envs.sparse import SparseOutcome

register()

__all__ = ["EpisodeEnv", "EpisodeVectorEnv", "Episodes", "GymEpisodes", "Snapshot", "SparseOutcome", "episodes"]

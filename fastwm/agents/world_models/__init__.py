"""World Models (2018): networks, agent and stages, one file each."""

from fastwm.agents.world_models.agent import WorldModels
from fastwm.agents.world_models.collect import Collect
from fastwm.agents.world_models.config import CConfig, CollectConfig, MConfig, VConfig, WorldModelsConfig
from fastwm.agents.world_models.encode import Encode
from fastwm.agents.world_models.evolve import EvolveC
from fastwm.agents.world_models.rnn import TrainM
from fastwm.agents.world_models.vae import TrainV

STAGES = (Collect, TrainV, Encode, TrainM, EvolveC)

__all__ = ["STAGES", "CConfig", "CollectConfig", "MConfig", "VConfig", "WorldModels", "WorldModelsConfig"]

"""The page of `fastwm view`: a world model as a game, the agent's episodes, the curves, and the replay."""

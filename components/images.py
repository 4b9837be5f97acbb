"""Container images of the components; the environment names others when pipelines are compiled."""

import os

DATA_IMAGE = os.environ.get("STABN_DATA_IMAGE", "stabn-data:latest")
TRAINER_IMAGE = os.environ.get("STABN_TRAINER_IMAGE", "stabn-trainer:latest")

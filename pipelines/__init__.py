"""KFP pipelines: graphs only, no I/O."""

"""KFP components: one stage per file, one call into stabn."""

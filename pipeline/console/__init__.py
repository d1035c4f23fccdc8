"""What a person reads while the pipeline runs: errors, progress, findings and facts of the machine."""

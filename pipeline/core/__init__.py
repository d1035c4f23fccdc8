"""What every stage stands on: files and formats on disk, params, seeds, and what a result was made from."""

"""What is transformed or inserted: gates, objectives, facts about architectures, packaged and tiny models."""

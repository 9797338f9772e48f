"""The report on an agent and its simulator: one page of figures and numbers, read from results."""

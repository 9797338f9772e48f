"""Fitted linear maps of hidden states, and the interventions built on them."""

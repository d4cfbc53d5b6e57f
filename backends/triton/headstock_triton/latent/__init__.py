"""Latent attention over pages: absorbed queries, decode split over tokens with a merge."""

"""The seam: hooks, loader, probes, devices."""

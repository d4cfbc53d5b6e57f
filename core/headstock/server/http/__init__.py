"""The HTTP application: routes over the front door, and the process that serves them."""

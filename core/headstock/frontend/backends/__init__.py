"""Who runs programs: an engine in this process, a Headstock server, or another's endpoint."""

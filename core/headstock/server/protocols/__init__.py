"""What each protocol says and hears: bodies to typed requests, completions to answers. No HTTP."""

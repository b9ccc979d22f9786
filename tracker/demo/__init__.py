"""A fake Elevate (``simulator``), and all of tracker in one go on this machine (``demo``)."""

"""The bundle on disk: its manifest, the records of what was built from it, whole files, and the packed archive."""

"""Images, clips and volumes: reading files, geometry, masks."""

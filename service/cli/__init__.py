"""The commands of `notegrade` that call a running service, or score without one."""

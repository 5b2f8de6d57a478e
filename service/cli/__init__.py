"""The commands of `notegrade` that talk to a service or score without one."""

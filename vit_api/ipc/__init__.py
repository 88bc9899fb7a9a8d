"""Where the HTTP half and the worker half meet: shared memory and pipes."""

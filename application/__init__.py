"""What Cairn does for its actors, on ports: learning (end user), authoring, identity, tenancy (operator)."""

"""What watches a model in use and renews it. No stage and no other room imports this one."""

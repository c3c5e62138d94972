"""What watches a model in use and renews it. Nothing else imports it."""

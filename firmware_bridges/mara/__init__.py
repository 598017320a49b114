"""MaraFW (KaonSu): JSON pages behind a digest."""

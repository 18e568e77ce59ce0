"""What is asked of maps between spaces that share no coordinates."""

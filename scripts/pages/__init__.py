"""What writes pages and pictures of docs/ from code and CSV files, and the hooks of the site."""

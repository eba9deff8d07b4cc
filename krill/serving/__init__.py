"""An HTTP server for one model, with an API like OpenAI's and a page for the browser."""

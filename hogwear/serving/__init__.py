"""Answering HTTP requests with a trained model: the application, and the engine that predicts.
The application never decodes and never computes. What is shared with infer lives in evaluation.
"""

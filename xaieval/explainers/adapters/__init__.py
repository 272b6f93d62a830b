"""Methods of other libraries: captum, pytorch-grad-cam, torch-cam, zennit, shap."""
